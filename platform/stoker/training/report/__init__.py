"""What a finished run leaves for people: result.json and report.html."""
