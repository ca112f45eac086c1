"""Names of a run's files and folders. Scripts of users read these files, so do not rename them."""

LOGS = "lightning_logs"  # in --default_root_dir; contains one folder version_N per run
CONFIG = "config.yaml"
METRICS = "metrics.csv"
RECORD = "run.json"
SPLIT = "split.csv"
LEFT_OUT = "left_out.csv"
CHECKPOINTS = "checkpoints"  # the folder of the next two files
BEST = "best.ckpt"
LAST = "last.ckpt"  # the end of an epoch; in RESUME: the newest resume point
RESUME = f"{CHECKPOINTS}/resume"  # the folder of the resume points, LAST and PREVIOUS
PREVIOUS = "previous.ckpt"
EVALUATION = "evaluation"  # the folder that evaluate.py writes to
PREDICTIONS = "predictions.csv"
PER_CLASS = "per_class.csv"
RELIABILITY = "reliability.png"
EXPLAINED = "explained.png"
OUT_OF_FOLD = "out_of_fold.csv"  # of a run with --folds
FOLDS = "folds"  # the folder of what the folds of an unfinished run need to resume
FIXES = "fixes.csv"  # written by check.py --labels
WRONG_LABELS = "wrong_labels.png"  # written by check.py --labels
REPORT = "report.html"
MODEL_CARD = "MODEL_CARD.md"
HASHES = "sha256.json"  # the SHA-256 of every other file of the run
