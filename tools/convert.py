#!/usr/bin/env python3
"""Converts models and adapters to GGUF: see `convert.py --help`."""

import sys

from lola_cpp.convert.cli import main

if __name__ == "__main__":
    sys.exit(main())
