"""The `lowprec` command's door: without its libraries it says the one command that is missing."""

import importlib.util
import sys

_NEEDED = ("jinja2", "matplotlib", "polars", "rich", "safetensors", "tyro")


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"the lowprec command needs {', '.join(missing)}: pip install 'lowprec[report]'",
            file=sys.stderr,
        )
        sys.exit(1)
    # The one late import: `lowprec.cli` imports what was just looked for.
    from lowprec.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
