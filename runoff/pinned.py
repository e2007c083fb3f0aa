"""The service of the model that RUNOFF_SERVICE names: what `runoff serve` runs."""

import os

from runoff.prediction import create_app

app = create_app(os.environ["RUNOFF_SERVICE"])
