"""Where frames come from. A source is a function `(input, step) -> scenes`; a scene yields its frames when asked."""

from data_prep.sources import frames, video

SOURCES = {"video": video.scenes, "frames": frames.scenes}
