"""Learning from its own candidates: which captions are drawn for, the drawing, the judges, and the mixture trained on."""
