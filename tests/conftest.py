"""Settings that are needed before torch is imported: quiet threads, no network, a separate cache."""

import atexit
import os
import shutil
import tempfile

_cache = tempfile.mkdtemp(prefix="t2i-test-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

os.environ["T2I_CACHE"] = _cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["COLUMNS"] = "100"  # help texts wrap alike everywhere
