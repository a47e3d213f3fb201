"""FlexSelect-Lite: the small decoders that reproduce a VideoLLM's ranking of visual tokens."""
