"""Ascend graphs compiled without a device: MindSpore's own front end, kernel selection and memory planning on stub CANN."""
