"""`python -m service` is `heed`."""

import sys

from service.cli import main

sys.exit(main())
