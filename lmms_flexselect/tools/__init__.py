"""The commands around a run: pictures, analysis, scores, reproduction, data, the machine."""
