"""The framework of the serving benchmark: LitServe around the same serving form in ONNX Runtime.

Environment: ``BUNDLE``, the bundle's directory; ``PORT``; ``WORKERS``, processes that predict.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from PIL import Image

BUNDLE = Path(os.environ["BUNDLE"])
WORKERS = int(os.environ["WORKERS"])


class Classifier(litserve.LitAPI):
    """Decodes an upload, predicts it with one thread, and names the verdict."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.contract = json.loads((BUNDLE / "model.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // WORKERS)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            BUNDLE / self.contract["serving"]["file"], options, providers=["CPUExecutionProvider"]
        )
        self.output = self.contract["serving"]["outputs"]["score"]

    # The framework reads the type of the parameter: a Request stands for whatever form was posted.
    def decode_request(self, request: Request) -> Any:
        """Return the upload as the network takes it."""
        takes, how = self.contract["input"], self.contract["preprocessing"]
        image = Image.open(io.BytesIO(request["file"].file.read()))
        image = image.convert("L" if takes["color"] == "grayscale" else "RGB")
        image = image.resize((takes["width"], takes["height"]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.float32).reshape(1, takes["height"], takes["width"], takes["channels"])
        return pixels * np.float32(how["scale"]) + np.float32(how["offset"])

    def predict(self, x: Any) -> Any:
        """Return the score."""
        return float(self.session.run([self.output], {"image": x})[0][0][0])

    def encode_response(self, output: Any) -> Any:
        """Name the verdict."""
        label = self.contract["labels"][int(output >= self.contract["decision"]["threshold"])]
        return {"prediction": label, "score": output}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(api_path="/predict"), accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=WORKERS,
        generate_client_file=False,
        log_level="warning",
    )
