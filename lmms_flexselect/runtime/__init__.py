"""What a run needs of the machine: memory, what is kept of videos, processes."""
