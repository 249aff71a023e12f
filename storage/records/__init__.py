"""What a cache says about itself: plan, commit records, manifest, settings and dataset card."""
