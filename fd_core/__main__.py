"""`python -m fd_core`: the same as `fd`."""

from __future__ import annotations

import sys

from fd_core.cli.main import main

sys.exit(main())
