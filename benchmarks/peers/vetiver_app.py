"""vetiver's own service of our pin. `uvicorn vetiver_app:app`."""

import os

from pins import board_folder
from vetiver import VetiverAPI, VetiverModel

board = board_folder(os.environ["BOARD"], allow_pickle_read=True)
app = VetiverAPI(VetiverModel.from_pin(board, os.environ["PIN"], os.environ["VERSION"])).app
