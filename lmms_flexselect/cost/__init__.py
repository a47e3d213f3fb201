"""What a model costs to run: operations, bytes and memory, from its shape alone; no family is known here."""
