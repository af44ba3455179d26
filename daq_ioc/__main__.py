"""``python -m daq_ioc`` is the ``daq-ioc`` command."""

import sys

from daq_ioc.cli import main

sys.exit(main())
