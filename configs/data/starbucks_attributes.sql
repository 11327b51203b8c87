-- Age 118 with empty gender and income means "not given".
SELECT
    person AS customer_id,
    gender,
    CASE WHEN age < 118 THEN age END::DOUBLE AS age,
    income::DOUBLE AS income,
    date_diff('day', became_member_on, TIMESTAMP '2018-07-27')::DOUBLE AS member_days
FROM '{root}/profile.parquet'
