"""What test_faults.py runs, and makes fail: build and publish; argv: data directory, input file."""

import sys

import kserve
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import Catalog

try:
    catalog = Catalog(sys.argv[1])
    catalog.publish(build(catalog, sys.argv[2], Options()).version)
except kserve.KserveError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
