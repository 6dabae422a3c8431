-- Dead letters also go into a topic, if one is named, from here: all of epochs before `dead_letters_upper` are delivered.
ALTER TABLE pipeline ADD COLUMN dead_letters_upper BIGINT NOT NULL DEFAULT 0;
CREATE INDEX dead_letters_by_epoch ON dead_letters (epoch);
