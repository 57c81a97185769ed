"""Two random views of a batch: `view` draws them, `pipeline` applies `spatial` and `color`."""
