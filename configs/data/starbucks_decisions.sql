-- Six waves, every customer in each: an offer, or none. The offers of a wave are sent before anything else happens in its
-- hour, so the decision lies a microsecond before: what shares the hour with it is after it.
SELECT
    profile.person AS customer_id,
    TIMESTAMP '2018-07-27' + to_hours(wave.time_h) - INTERVAL 1 MICROSECOND AS decision_time,
    coalesce(offer_type || '_' || portfolio.reward || '_' || difficulty || '_' || duration || 'd', 'none') AS action
FROM '{root}/profile.parquet' AS profile
CROSS JOIN (SELECT DISTINCT time_h FROM '{root}/events.parquet' WHERE event = 'offer received') AS wave
LEFT JOIN '{root}/events.parquet' AS events
    ON events.person = profile.person AND events.time_h = wave.time_h AND events.event = 'offer received'
LEFT JOIN '{root}/portfolio.parquet' AS portfolio USING (offer_id)
