"""Serves the page and the HTTP API: python scripts/app.py, then open http://127.0.0.1:7860"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors


@plain_errors
def main():
    try:
        from sd.web.server import serve, server_parser
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is missing: run `make app`, or `pip install ".[web]"` in the clone.') from error
    serve(server_parser().parse_args())


if __name__ == "__main__":
    main()
