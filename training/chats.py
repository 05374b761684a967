"""Chats made by rule: requests for the stories we have, greetings, the model's identity, sums."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Chat = dict[str, list[dict[str, str]]]

_TOPICS = (
    "ant baby bear bee bird boat boy bunny butterfly cat chicken children cow crow dog donkey doll "
    "dragon duck elephant fairy farmer fish flower fox friend frog garden giant girl goat goose "
    "grandmother hen horse hunter king kitten lion man mice monkey moon "
    "mother mouse owl pig pony prince princess puppy queen rabbit raccoon river "
    "sheep ship snake snow spider squirrel star sun teacher tiger toad tortoise tree turtle "
    "whale wind wolf woman woodpecker"
)
TOPICS = tuple(_TOPICS.split())

STORY_REQUESTS = (
    "Tell me a story about {topic}.",
    "Tell me a short story about {topic}.",
    "Tell me a story about {topic}, please.",
    "Can you tell me a story about {topic}?",
    "Please tell me a story about {topic}.",
    "I would like a story about {topic}.",
    "Write a short story about {topic}.",
    "Write a story about {topic}",
    "tell me a story about {topic}",
)
PLAIN_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Please tell me a story.",
    "tell me a story",
    "Write a short story.",
    "I want to hear a story.",
)

GREETINGS = {
    ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hi there!", "Hey", "hello", "hi", "hey there"): (
        "Hello! How can I help you today?",
        "Hello! It is nice to talk to you.",
        "Hi there! What would you like to talk about?",
    ),
    ("How are you?", "How are you today?", "how are you", "How do you do?", "Are you well?"): (
        "I am well, thank you. How are you?",
        "I am very well, thank you!",
    ),
    ("Good morning!", "Good morning", "good morning"): ("Good morning! How are you today?",),
    ("Good evening!", "Good evening"): ("Good evening! How was your day?",),
    ("Good night!", "Good night", "good night"): ("Good night! Sleep well.",),
    ("Thank you!", "Thank you", "Thanks", "thanks!", "Thank you very much."): (
        "You are welcome!",
        "You are very welcome.",
    ),
    ("Goodbye", "Goodbye!", "Bye", "Bye!", "See you later."): (
        "Goodbye! It was nice to talk to you.",
        "Goodbye! Come back soon.",
    ),
    ("What is your name?", "what is your name", "What's your name?", "What are you called?"): (
        "My name is diffusionGPT.",
        "I am diffusionGPT, a small diffusion language model.",
    ),
    ("Who are you?", "who are you", "What are you?", "Tell me about yourself."): (
        "I am diffusionGPT, a small diffusion language model.",
        "I am diffusionGPT. I am a small language model that writes by filling in masked words.",
    ),
    ("Are you a robot?", "Are you human?", "Are you a person?", "Are you real?"): (
        "No, I am a small language model. My name is diffusionGPT.",
    ),
    ("How do you work?", "How do you write?", "What is a diffusion language model?"): (
        "I start with masked words and fill them in, many at the same time.",
    ),
    ("Who made you?", "Where do you come from?", "Who built you?"): (
        "I was trained by the diffusionGPT project.",
    ),
    ("What can you do?", "What can you help me with?", "Can you help me?", "Help me."): (
        "I can talk with you a little and tell you short stories.",
        "I can tell you a short story. Just ask me for one!",
    ),
    ("Are you smart?", "Do you know everything?", "Are you clever?"): (
        "I am only a small model, so I make many mistakes.",
    ),
}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(request: str, answer: str) -> Chat:
    """One request and its answer."""
    return {"messages": [_message("user", request), _message("assistant", answer)]}


def generated_chats(count: int, seed: int) -> Iterator[Chat]:
    """`count` chats: half greetings and identity, half sums."""
    generator = np.random.default_rng(seed)
    groups = list(GREETINGS.items())
    for index in range(count):
        if index % 2:
            yield _sum(generator)
            continue
        requests, answers = groups[int(generator.integers(len(groups)))]
        yield chat(
            requests[int(generator.integers(len(requests)))],
            answers[int(generator.integers(len(answers)))],
        )


def _sum(generator: np.random.Generator) -> Chat:
    first, second = (int(x) for x in generator.integers(0, 11, size=2))
    if generator.random() < 0.5:
        sign, word, result = "+", "plus", first + second
    else:
        first, second = max(first, second), min(first, second)
        sign, word, result = "-", "minus", first - second
    requests = (
        f"What is {first} {sign} {second}?",
        f"What is {first} {word} {second}?",
        f"{first} {sign} {second}",
        f"How much is {first} {word} {second}?",
    )
    answers = (f"{first} {word} {second} is {result}.", f"{first} {sign} {second} = {result}.")
    return chat(requests[int(generator.integers(4))], answers[int(generator.integers(2))])


def story_requests(records: Iterable[Mapping[str, Any]], count: int, seed: int) -> list[Chat]:
    """`count` requests answered by passages of stories, each named by what it tells of most."""
    generator = np.random.default_rng(seed)
    passages = [p for record in records for p in passages_of(record["text"], generator)]
    picked = generator.permutation(len(passages))[:count]
    return [_story_chat(passages[int(index)], generator) for index in picked]


def passages_of(text: str, generator: np.random.Generator) -> list[str]:
    """Runs of whole paragraphs of 250-650 characters, starting at the beginning of the text."""
    passages: list[str] = []
    run: list[str] = []
    target = int(generator.integers(250, 550))
    for paragraph in text.split("\n\n"):
        run.append(" ".join(paragraph.split()))
        joined = "\n\n".join(run)
        if len(joined) >= target:
            if len(joined) <= 700 and joined.endswith((".", "!", "?", '"')):
                passages.append(joined)
            run, target = [], int(generator.integers(250, 550))
        if len(passages) == 4:
            break
    return passages


def topic_of(passage: str) -> str | None:
    """The topic named most often in the passage, if it is named at least twice."""
    words = re.findall(r"[a-z]+", passage.lower())
    counts = {topic: words.count(topic) for topic in TOPICS}
    best = max(counts, key=lambda topic: counts[topic])
    return best if counts[best] >= 2 else None


def _story_chat(passage: str, generator: np.random.Generator) -> Chat:
    topic = topic_of(passage)
    if topic is None:
        request = PLAIN_REQUESTS[int(generator.integers(len(PLAIN_REQUESTS)))]
        return chat(request, passage)
    article = "" if topic in ("children", "mice") else "an " if topic[0] in "aeiou" else "a "
    if topic in ("moon", "sun", "wind", "snow") and article:
        article = "the "
    request = STORY_REQUESTS[int(generator.integers(len(STORY_REQUESTS)))]
    return chat(request.format(topic=article + topic), passage)
