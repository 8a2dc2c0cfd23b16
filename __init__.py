"""Lets `import t2i` find the package from the folder that holds this checkout.

A checkout in a folder named `t2i` hides the installed package there: Python takes the folder for a package. This file hands
over to the real one.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == "t2i":
    package = Path(__file__).parent / "t2i"
    spec = spec_from_file_location("t2i", package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None and spec.loader is not None
    sys.modules["t2i"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["t2i"])
