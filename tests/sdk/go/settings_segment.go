package main

import analytics "github.com/segmentio/analytics-go/v3"

// Segment's SDK cannot compress.
func apply(*analytics.Config, bool) {}
