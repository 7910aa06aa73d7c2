"""Twenty prompts of everyday kinds, for parity with torch and for benchmarks."""

PROMPTS = [
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "List five things to check before a long bicycle tour.",
    "How do I reverse a list in Python?",
    "Translate into Spanish: Where is the nearest train station?",
    "Give me a recipe for tomato soup for four people.",
    "What is the difference between a virus and a bacterium?",
    "Summarize the water cycle for a ten-year-old.",
    "If a train travels 180 km in 2.5 hours, what is its average speed?",
    "Write a polite e-mail that declines an invitation to a conference.",
    "Why did the Roman Empire fall?",
    "Name three prime numbers above 50 and say why they are prime.",
    "What should I plant in a shady garden with heavy soil?",
    "Describe the taste of a ripe mango to someone who never had one.",
    "Correct this sentence: She don't likes going at the market.",
    "What does the word 'serendipity' mean? Use it in a sentence.",
    "How does a refrigerator keep food cold?",
    "Write four lines of verse about rain on a tin roof.",
    "My phone does not charge any more. What can I try?",
]
