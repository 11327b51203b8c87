-- Hours become times from the day after the last customer joined (the source names no date). The line number keeps the
-- order within an hour; 397 lines about completed offers are exact repeats and are dropped.
SELECT
    person AS customer_id,
    TIMESTAMP '2018-07-27' + to_hours(time_h) AS event_time,
    events.event AS event_type,
    amount,
    min(seq) AS seq,
    offer_type || '_' || portfolio.reward || '_' || difficulty || '_' || duration || 'd' AS offer,
    events.reward::DOUBLE AS reward_paid
FROM '{root}/events.parquet' AS events
LEFT JOIN '{root}/portfolio.parquet' AS portfolio USING (offer_id)
GROUP BY ALL
