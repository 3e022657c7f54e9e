"""LangChain as its users write it, synchronous: run by the Python of its own environment.

    python langchain_client.py BASE_URL KEY

Prints two answers, whole and streamed, one on each line.
"""

import sys

from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]


def main(base_url: str, key: str) -> None:
    """Ask twice."""
    model = ChatOpenAI(base_url=base_url, api_key=key, model="tiny")
    print(model.invoke("hello").content)  # noqa: T201 -- its one output
    print("".join(piece.content for piece in model.stream("hello")))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
