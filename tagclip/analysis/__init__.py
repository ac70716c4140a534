"""What a trained model did, and what a config costs: curves, calibration, confusions, reports."""
