"""Fifty answers of a model with the seeds 1 to 50, not selected, as Markdown.

python benchmarks/sample.py [--model FOLDER]
"""

from __future__ import annotations

import argparse
import sys

from diffusiongpt.engine import Engine, GenerationParams

PROMPTS = (
    "Hello!",
    "How are you today?",
    "What is your name?",
    "What can you do?",
    "Tell me a story about a cat.",
    "Tell me a story about a princess.",
    "Tell me a story.",
    "Can you tell me a short story about a dog and a boy?",
    "Write a story about the moon.",
    "What is 2 + 3?",
    "What is the capital of France?",
    "What do you like to eat?",
    "Do you like music?",
    "Tell me a joke.",
    "I am sad today.",
    "What is the opposite of hot?",
    "Rewrite the sentence in the past tense: She walks to school.",
    "Who wrote Alice in Wonderland?",
    "Thank you very much!",
    "Good night!",
    "Hi there, who are you?",
    "Are you a robot?",
    "How old are you?",
    "Where do you live?",
    "What is your favourite colour?",
    "Do you have any friends?",
    "What did you do today?",
    "I like dogs.",
    "I am very happy!",
    "Can you help me?",
    "Tell me a story about a mouse and a lion.",
    "Tell me a story about the sea.",
    "Write a short story about a lost ball.",
    "Tell me a story about two brothers.",
    "Tell me a story about a hungry fox.",
    "Write a story about a rainy day.",
    "Tell me about trees.",
    "What is water?",
    "Why is the sky blue?",
    "What is 10 - 4?",
    "How many days are in a week?",
    "Name three animals.",
    "What is the plural of child?",
    "Give me a synonym for big.",
    "Correct the sentence: He go to the market.",
    "Where can I eat dinner tonight?",
    "What is the weather like?",
    "Do you want to play a game?",
    "Sorry, I have to go now.",
    "Goodbye!",
)


def main() -> None:
    """Ask everything in one batch and print the answers."""
    parser = argparse.ArgumentParser(description="Print fifty answers with their seeds.")
    parser.add_argument("--model", default=None)
    parser.add_argument("--max_tokens", type=int, default=200)
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.model)
    chats = [engine.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    params = GenerationParams(max_tokens=options.max_tokens, seed=1)
    for index, answer in enumerate(engine.generate(chats, params)):
        usage = answer.usage
        sys.stdout.write(
            f"**{index + 1}. {PROMPTS[index]}** (seed {index + 1}, "
            f"{usage.completion_tokens} tokens, {usage.nfe} forwards, {answer.finish_reason})\n\n"
        )
        quoted = "\n".join(f"> {line}".rstrip() for line in answer.text.strip().splitlines())
        sys.stdout.write(f"{quoted or '> (nothing)'}\n\n")


if __name__ == "__main__":
    main()
