"""Writes docs/api.md from the docstrings of `stats_lib`.

python -m dev.api
"""

import inspect
from pathlib import Path

import stats_lib

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"


def page() -> str:
    """What docs/api.md should say."""
    names = sorted(stats_lib.__all__, key=lambda name: (not name.islower(), name))  # functions first
    contents = " · ".join(f"[{name}](#{name.lower()})" for name in names)
    parts = [f"# stats_lib\n\n{inspect.getdoc(stats_lib)}\n\n{contents}"]
    for name in names:
        thing = getattr(stats_lib, name)
        if inspect.isfunction(thing):
            parameters = ",\n".join(f"    {parameter}" for parameter in _parameters(thing))
            code = f"{name}(\n{parameters},\n) -> {_plain(inspect.signature(thing).return_annotation)}"
        elif thing is stats_lib.Marketplace:
            code = "\n".join(f'{name}.{member.name} = "{member.value}"' for member in stats_lib.Marketplace)
        else:
            fields = inspect.get_annotations(thing) | {
                rate: float for rate in ("success_rate", "failure_rate") if hasattr(thing, rate)
            }
            code = "\n".join(f"{name}.{field}: {_plain(kind)}" for field, kind in fields.items())
        parts.append(f"## {name}\n\n```\n{code}\n```\n\n{inspect.getdoc(thing)}")
    return "\n\n".join(parts) + "\n"


def _parameters(function: object) -> list[str]:
    signature = inspect.signature(function)  # type: ignore[arg-type]  # isfunction() narrows to Any only
    texts = [_plain(parameter) for parameter in signature.parameters.values()]
    return [texts[0], "*", *texts[1:]]


def _plain(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    return (
        text.replace("psycopg.Connection", "Connection")
        .replace("stats_lib._types.", "")
        .replace("typing.", "")
        .replace("collections.abc.", "")
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
