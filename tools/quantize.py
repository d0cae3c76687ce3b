#!/usr/bin/env python3
"""Quantizes a GGUF model: see `quantize.py --help`."""

import sys

from lola_cpp.convert.quantize_cli import main

if __name__ == "__main__":
    sys.exit(main())
