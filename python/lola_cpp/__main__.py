"""`python -m lola_cpp` is `lola-cpp`."""

import sys

from .cli import main

sys.exit(main())
