"""Reading videos: the frames that a player would show, by their presentation times, or one line that names the file.

``file`` says what is wrong with a path from outside, ``packets`` looks at a file without decoding, ``timeline`` tells
when its frames are shown, ``decoding`` takes frames out of it, ``damage`` says what is missing or broken,
``decord_reader`` is the other reader, ``watchdog`` ends what hangs, ``reading`` puts them together, and ``checking``
looks at many files.
"""
