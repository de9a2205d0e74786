"""The command `mlserver`, without optimum: the 1.27 that its runtime wants cannot be imported beside torch 2.13.

The runtime imports it for models in ONNX, which is not what is served here.
"""

import sys
from types import ModuleType

if __name__ == "__main__":
    stand_in = ModuleType("optimum.pipelines")
    stand_in.__dict__.update(pipeline=None, SUPPORTED_TASKS={})
    sys.modules[stand_in.__name__] = stand_in

    from mlserver.cli import main

    main()
