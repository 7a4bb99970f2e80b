"""What test_faults.py runs, and makes fail: build and publish; argv: data directory, input file."""

import sys

import kserve
from kserve.settings import Settings
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

try:
    catalog = Catalog(sys.argv[1])
    version = build(catalog, sys.argv[2], Options()).version
    catalog.reread(version)
    catalog.place(version)
    Orders(catalog, Settings()).announce(version, against=catalog.live())
except kserve.KserveError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
