-- One database and one role each for Optuna and MLflow. Runs once, when the volume of the database is empty.
\getenv optuna_password OPTUNA_PASSWORD
\getenv mlflow_password MLFLOW_PASSWORD

CREATE ROLE optuna LOGIN PASSWORD :'optuna_password';
CREATE DATABASE optuna OWNER optuna;
REVOKE CONNECT ON DATABASE optuna FROM PUBLIC;

CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
