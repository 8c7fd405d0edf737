"""`demo`: show it at work."""

from __future__ import annotations

import argparse

from clb_discovery.demo.show import show


def main(typed: argparse.Namespace) -> int:
    """Run the demo."""
    return show(color=not typed.no_color)
