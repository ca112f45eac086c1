"""Predict rows of numbers without torch: python predict.py ROWS.npy... (pip install numpy onnxruntime)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

network = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
names = json.loads(network.get_modelmeta().custom_metadata_map["class_names"])  # [] of a regression
for path in sys.argv[1:]:
    rows = np.load(path).astype(np.float32)  # (N, F)
    for number, answers in enumerate(network.run(None, {"rows": rows})[0].tolist(), start=1):
        found = {"probabilities": dict(zip(names, answers, strict=True))} if names else {"outputs": answers}
        print(json.dumps({"path": path, "row": number} | found))
