"""What selection sees: a video's frames with relevance and kept tokens, as a picture and as a page to step through."""
