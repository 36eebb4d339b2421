"""Ordinary requests for measurements of speed, by kind of text."""

from __future__ import annotations

KIND_OF = {
    "Why is the sky blue, and why are sunsets red?": "prose",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring.": "code",
    "A train travels 180 km in 2 hours and then 120 km in 1.5 hours. What is its average speed? "
    "Think step by step.": "sums",
    "Give me five tips for learning a new language.": "prose",
    "Write a SQL query that finds the three customers with the highest total order value.": "code",
    "A shop sells pens at 3 for 2 euros. How much do 27 pens cost? Show your working.": "sums",
    "Summarise how photosynthesis works for a ten-year-old.": "prose",
    "Explain the difference between a stack and a queue, with an everyday example of "
    "each.": "prose",
    "Write a short, friendly e-mail that moves a meeting from Tuesday to Thursday.": "prose",
    "Write a JavaScript function that removes duplicates from an array of numbers.": "code",
    "Tom has 4 boxes with 12 apples each and gives away 15 apples. How many are left?": "sums",
    "What should I consider when I choose a bicycle for commuting?": "prose",
}
"""The kind of text that each request asks for."""

PROMPTS = tuple(KIND_OF)
KINDS = {
    kind: tuple(text for text in PROMPTS if KIND_OF[text] == kind)
    for kind in ("prose", "code", "sums")
}
"""The requests of each kind."""
