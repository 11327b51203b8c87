-- One event per rating, at its time. What was rated counts, not how.
SELECT
    user_id AS customer_id,
    "timestamp" AS event_time,
    'rating' AS event_type,
    item_id::VARCHAR AS product
FROM '{root}/interactions.parquet'
