"""The baseline of the serving benchmark: Flask and ``model.predict``, as the system that Lightbox replaces had it.

The upload is written to a file, read by Keras' own loader, brought to the input's size and predicted; the answer holds
verdict, confidence and the image. Environment: ``MODEL``, a ``.keras`` file; ``CONTRACT``, the bundle's ``model.json``.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
from flask import Flask, jsonify, request

app = Flask(__name__)
contract = json.loads(Path(os.environ["CONTRACT"]).read_text())
model = keras.models.load_model(os.environ["MODEL"], compile=False)
size = (contract["input"]["height"], contract["input"]["width"])
color = contract["input"]["color"]
scale, offset = contract["preprocessing"]["scale"], contract["preprocessing"]["offset"]


@app.get("/health")
def health() -> Any:
    """Say that the process answers."""
    return jsonify(status="healthy")


@app.post("/predict")
def predict() -> Any:
    """Classify an upload."""
    file = request.files["file"]
    with tempfile.NamedTemporaryFile(suffix=".img") as stored:
        file.save(stored.name)
        image = keras.utils.load_img(stored.name, target_size=size, color_mode=color, interpolation="bilinear")
        content = Path(stored.name).read_bytes()
    x = np.expand_dims(keras.utils.img_to_array(image) * scale + offset, 0)
    score = float(model.predict(x, verbose=0)[0][0])
    label = contract["labels"][int(score >= contract["decision"]["threshold"])]
    return jsonify(
        prediction=label,
        confidence=f"{(score if label == contract['labels'][1] else 1 - score):.2%}",
        score=score,
        filename=file.filename,
        image=base64.b64encode(content).decode(),
        timestamp=datetime.now().isoformat(),
    )
