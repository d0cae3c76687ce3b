#!/usr/bin/env python3
"""Distils a Hugging Face model into a LoLA adapter: see `distill.py --help`."""

import sys

from lola_cpp.distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
