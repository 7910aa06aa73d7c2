"""The verbs of the runtime, one a file."""
