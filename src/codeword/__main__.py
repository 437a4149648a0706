"""``python -m codeword``."""

from codeword.cli import main

raise SystemExit(main())
