"""How one VideoLLM family is read: processor inputs -> `VideoPrompt`, and generating from one."""
