"""The study of beginnings: students that are new or cut from their teacher, where they learn, and from what."""
