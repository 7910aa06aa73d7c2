"""Tasks over long prompts, and what a smaller KV cache does to their scores."""
