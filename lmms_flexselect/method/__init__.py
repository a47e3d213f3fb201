"""The method: prompts, frame sets, relevance, selection and the selectors; it knows no model family."""
