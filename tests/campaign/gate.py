"""`python -m tests.campaign.gate`: the product's program with the campaign's journal in it, and a bug when told to."""

from __future__ import annotations

import os

from tests.campaign import inside


def main() -> None:
    for name in filter(None, os.environ.get(inside.PLANT, "").split(",")):
        from tests.campaign.planting import plant

        plant(name)
    inside.load()
    from app.cli.main import main as program

    program()


if __name__ == "__main__":
    main()
