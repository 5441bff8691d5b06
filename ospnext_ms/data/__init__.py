"""Text, video files and manifests."""
