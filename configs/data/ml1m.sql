-- One event per rating, in each user's own order; the clock times are not in these files.
-- The 598 ratings of films that fewer than five users rated have no position and are left out, as in the literature.
-- What was rated counts, not how: the published figures know no stars either.
SELECT
    user_id AS customer_id,
    "position"::BIGINT AS event_time,
    'rating' AS event_type,
    movie_id::VARCHAR AS product
FROM '{root}/interactions.parquet'
WHERE "position" IS NOT NULL
